"""Where arrays live: the device mesh, and one named sharding for every kind of array."""
