"""How fast Volley is, against the machine's limits and against its peers: see README.md here."""
