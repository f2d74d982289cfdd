"""Self-contained HTML pages: layout, tables and charts."""
