"""What the server, its parts and the seeder cost: `make bench`."""
