//! Drives the published `wfe-sqlite` crate from the command line, so that tests written in
//! another language can check that they read and write the same files.

mod bench;
mod dump;
mod load;
mod retrier;
mod write;

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde_json::Value;
use wfe_sqlite::SqlitePersistenceProvider;

const USAGE: &str = "usage: wfe-sql-reference write FILE < DOCUMENT
       wfe-sql-reference dump FILE
       wfe-sql-reference load FILE --worker NAME --operations N [--shared ID[,ID...]]
       wfe-sql-reference bench FILE --workload lifecycle|persist|get|sequence|big_persist|big_get
                               --callers N --operations N";

/// 9999-12-31T23:59:59.999999999Z. The provider compares times as text, in which any later
/// time would be the smaller one, as its year would start with a `+`.
const FAR_FUTURE: DateTime<Utc> = DateTime::from_timestamp(253_402_300_799, 999_999_999).unwrap();

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// On several threads, as `bench` measures what a host would get.
#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["write", file] => write::run(file).await,
        ["dump", file] => dump::run(file).await,
        ["load", file, options @ ..] => load::run(file, &load::Options::parse(options)?).await,
        ["bench", file, options @ ..] => bench::run(file, &bench::Options::parse(options)?).await,
        _ => Err(USAGE.into()),
    }
}

/// Opens the file with the provider, which takes a URL: what has a meaning there is escaped.
async fn open(file: &str) -> Result<SqlitePersistenceProvider> {
    let path = file.replace('%', "%25").replace('?', "%3F");
    SqlitePersistenceProvider::new(&format!("sqlite://{path}")).await
}

/// Flushes, as the reader may follow a run that is still going on.
fn print_line(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
