"""The record of a search: `OptunaOracle`, attempts, storage, folder."""
