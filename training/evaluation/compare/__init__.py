"""Results of `segue evaluate --json` put side by side: statistics, tables beside the paper's, one page with plots."""
