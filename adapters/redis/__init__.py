"""One Redis server, or several behind Sentinel or as a Cluster: transport and state."""
