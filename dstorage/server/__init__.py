"""A store on the network: a node that speaks the Redis protocol (`dstorage serve`)."""
