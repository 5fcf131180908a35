"""What the N2NSkip paper prints, and the same computed here: Table 3, Fig. 3 and Fig. 4."""
