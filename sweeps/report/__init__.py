"""The report of a sweep: scores, comparisons, figures and the page that shows them."""
