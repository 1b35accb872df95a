"""What a request and the seeder cost: `make bench`."""
