//! What every program does that writes to a file beside others: it tries again.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::sleep;

const MOST_RETRIES: u32 = 1000;
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Repeats operations that found the database locked, and counts how often.
#[derive(Default)]
pub struct Retrier {
    pub busy_retries: u64,
}

impl Retrier {
    /// Takes no `AsyncFn`, as the compiler does not see that the futures of one are `Send`.
    pub async fn run<T, E: Display, F: Future<Output = Result<T, E>>>(
        &mut self,
        operation: impl Fn() -> F,
    ) -> Result<T, E> {
        for _ in 0..MOST_RETRIES {
            match operation().await {
                Err(error) if is_busy(&error) => {
                    self.busy_retries += 1;
                    sleep(RETRY_DELAY).await;
                }
                result => return result,
            }
        }
        operation().await
    }

    /// Like [`Self::run`], for an operation that inserts rows with ids made for this round
    /// only: where a repetition finds such a row, an earlier try has been written after all.
    pub async fn create<T, E: Display, F: Future<Output = Result<T, E>>>(
        &mut self,
        operation: impl Fn() -> F,
    ) -> Result<(), E> {
        let busy_retries = self.busy_retries;
        match self.run(operation).await {
            Err(error) if self.busy_retries > busy_retries && is_taken(&error) => Ok(()),
            result => result.map(drop),
        }
    }
}

/// The provider hands on no error codes, only SQLite's text.
fn is_busy(error: &impl Display) -> bool {
    let text = error.to_string();
    text.contains("database") && (text.contains("locked") || text.contains("busy"))
}

fn is_taken(error: &impl Display) -> bool {
    error.to_string().contains("UNIQUE constraint failed")
}
