"""Networks, and the processes around them."""
