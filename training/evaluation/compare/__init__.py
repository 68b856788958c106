"""Results of `segue evaluate --output` put side by side: statistics, tables beside the paper's, one page with plots."""
