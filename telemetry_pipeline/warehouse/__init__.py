"""The ClickHouse warehouse: client, migrations, embedded server."""
