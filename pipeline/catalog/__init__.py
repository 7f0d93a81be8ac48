"""The first step: which tracks there are. One file for each kind of catalog; ``load`` tells them apart."""
