"""The drivers, under the names that users type. Each keeps the contract of voldriverd.driver."""
