-- The table of accounts. seed.py creates it.
CREATE TABLE IF NOT EXISTS accounts (
  id BIGINT PRIMARY KEY AUTO_INCREMENT,
  name VARCHAR(254) NOT NULL,
  email VARCHAR(254) NOT NULL
) ENGINE=InnoDB CHARACTER SET utf8mb4
