"""How a consumer tells how it is: figures, HTTP, systemd, a line on a terminal."""
