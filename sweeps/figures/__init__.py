"""Figures that set the settings of a sweep side by side: strong, medium and weak priors."""
