-- One database for each thing that is kept: events (raw), bookkeeping (ops), people's choices (privacy).
-- dbt makes its own: staging, intermediate, marts.
CREATE DATABASE IF NOT EXISTS raw;
CREATE DATABASE IF NOT EXISTS ops;
CREATE DATABASE IF NOT EXISTS privacy;
