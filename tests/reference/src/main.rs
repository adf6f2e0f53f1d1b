//! Drives the published `wfe-sqlite` and `wfe-postgres` crates from the command line, so that tests
//! written in another language can check that they read and write the same stores.

mod bench;
mod dump;
mod load;
mod retrier;
mod run;
mod store;
mod write;

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::store::Store;

const USAGE: &str = "usage: wfe-sql-reference write STORE < DOCUMENT
       wfe-sql-reference dump STORE
       wfe-sql-reference run STORE
       wfe-sql-reference load STORE --worker NAME --operations N [--shared ID[,ID...]]
       wfe-sql-reference bench STORE --workload lifecycle|persist|get|sequence|big_persist|big_get
                                --callers N --operations N
a store is a file, or postgresql://...#SCHEMA";

/// 9999-12-31T23:59:59.999999999Z. The provider of SQLite compares times as text, in which any later
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
    let [command, store, options @ ..] = arguments.as_slice() else {
        return Err(USAGE.into());
    };
    let store = Store::parse(store)?;
    match (*command, options) {
        ("write", []) => write::run(&store).await,
        ("dump", []) => dump::run(&store).await,
        ("run", []) => run::run(&store).await,
        ("load", options) => load::run(&store, &load::Options::parse(options)?).await,
        ("bench", options) => bench::run(&store, &bench::Options::parse(options)?).await,
        _ => Err(USAGE.into()),
    }
}

/// Flushes, as the reader may follow a run that is still going on.
fn print_line(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
