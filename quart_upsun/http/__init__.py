"""HTTP around every view: the proxy in front, hosts and other sites, caching, headers, bodies."""
