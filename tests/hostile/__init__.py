"""Inputs that mean harm, by the thousand: `make test-hostile`. A short form of each runs in `make test`."""
