"""What a training reads beside its data, made once and kept below `paths.stores`: reference losses, the index of
targets, lengths of samples, features of a frozen tower."""
