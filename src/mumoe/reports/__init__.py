"""Results as files that people read: JSON, tables, figures."""
