"""What HTML reports share: charts, tables, style sheet, script, and pages that need no network."""
