"""Statistics of right and wrong answers: intervals, comparisons, a bag-of-words baseline, calibration."""
