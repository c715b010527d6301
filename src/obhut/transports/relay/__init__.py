"""Workers behind a firewall, reached through the aggregator that they dial out to."""
