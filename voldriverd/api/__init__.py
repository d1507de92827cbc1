"""The doors: the Docker volume plugin and the Rancher v1 API. HTTP status codes stand here only."""
