"""Pages without a network: layout, tables and charts."""
