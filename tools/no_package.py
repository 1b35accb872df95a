"""What `pip install .` runs. cct is no package, so it refuses."""

raise SystemExit("cct is not a package. Start it with `docker compose up` or `make local`.")
