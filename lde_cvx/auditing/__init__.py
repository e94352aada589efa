"""What an audit is made of: its configuration, the case it examines, its rows and their summary."""
