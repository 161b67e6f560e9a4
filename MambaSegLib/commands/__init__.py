"""The subcommands of `mambaseg`, one file each. Importing them needs neither PyTorch nor SimpleITK."""
