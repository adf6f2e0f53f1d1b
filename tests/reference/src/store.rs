//! A store of either crate: where it is, the provider, and a connection to its tables.

use std::fs;
use std::sync::Arc;

use sqlx::any::install_default_drivers;
use sqlx::{AnyConnection, Connection, Executor, query_scalar};
use wfe_core::traits::PersistenceProvider;
use wfe_postgres::{PostgresOptions, PostgresPersistenceProvider};
use wfe_sqlite::SqlitePersistenceProvider;

use crate::Result;

/// What the commands use: nothing that only one of the crates has.
pub type Provider = dyn PersistenceProvider;

pub enum Store {
    Sqlite { path: String },
    Postgres { url: String, schema: String },
}

impl Store {
    /// A file, or `postgresql://...#SCHEMA`: one argument says all.
    pub fn parse(argument: &str) -> Result<Self> {
        if !argument.starts_with("postgresql://") {
            let path = argument.to_owned();
            return Ok(Self::Sqlite { path });
        }
        let (url, schema) = argument.split_once('#').ok_or("which schema? URL#SCHEMA")?;
        Ok(Self::Postgres {
            // libpq takes a URL whose options alone have the host, sqlx does not.
            url: url.replacen("@/", "@localhost/", 1),
            schema: schema.to_owned(),
        })
    }

    /// Opens the store with its provider, which makes it where it does not exist.
    pub async fn open(&self) -> Result<Arc<Provider>> {
        Ok(match self {
            Self::Sqlite { .. } => Arc::new(SqlitePersistenceProvider::new(&self.url()).await?),
            Self::Postgres { url, schema } => {
                let options = PostgresOptions {
                    schema: schema.clone(),
                    ..PostgresOptions::default()
                };
                let provider = PostgresPersistenceProvider::connect(url, options).await?;
                provider.ensure_store_exists().await?;
                Arc::new(provider)
            }
        })
    }

    /// Connects to the tables, to list what the provider has no method for; changes nothing.
    pub async fn tables(&self) -> Result<AnyConnection> {
        install_default_drivers();
        let mut tables = AnyConnection::connect(&self.url()).await?;
        match self {
            Self::Sqlite { .. } => tables.execute("PRAGMA query_only = ON").await?,
            Self::Postgres { schema, .. } => {
                let settings = format!("SET search_path TO \"{schema}\"; SET TimeZone TO 'UTC'");
                tables.execute(settings.as_str()).await?
            }
        };
        Ok(tables)
    }

    /// Bytes written so far, where the system tells: those of this process, or of a server's write-ahead log.
    pub async fn bytes_written(&self) -> Result<Option<i64>> {
        if let Self::Postgres { .. } = self {
            let position = "SELECT (pg_current_wal_lsn() - '0/0'::PG_LSN)::BIGINT";
            let written = query_scalar(position)
                .fetch_one(&mut self.tables().await?)
                .await?;
            return Ok(Some(written));
        }
        let Ok(counters) = fs::read_to_string("/proc/self/io") else {
            return Ok(None);
        };
        let written = counters
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "))
            .ok_or("/proc/self/io has no write_bytes")?;
        Ok(Some(written.parse()?))
    }

    /// A time of a table as RFC 3339 text.
    pub fn time_as_text(&self, column: &str) -> String {
        match self {
            Self::Sqlite { .. } => column.to_owned(),
            Self::Postgres { .. } => format!("to_json({column}) #>> '{{}}'"),
        }
    }

    fn url(&self) -> String {
        match self {
            // What has a meaning in a URL is escaped.
            Self::Sqlite { path } => {
                format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F"))
            }
            Self::Postgres { url, .. } => url.clone(),
        }
    }
}
