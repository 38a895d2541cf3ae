"""What an audit found: values, words, tables, pages and figures."""
