"""What `AtomicBackup` writes and restores."""
