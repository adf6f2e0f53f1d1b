//! `load FILE`: a write load, to be run beside other programs that write to the same file.

use std::fmt::Display;
use std::time::Duration;

use chrono::Utc;
use serde_json::json;
use tokio::time::sleep;
use wfe_core::models::{Event, EventSubscription, ExecutionPointer, WorkflowInstance};
use wfe_core::traits::{EventRepository, SubscriptionRepository, WorkflowRepository};
use wfe_sqlite::SqlitePersistenceProvider;

use crate::{FAR_FUTURE, Result, USAGE, open, print_line};

/// Of the definition whose sequence is drawn, of the events and of the workflows' names.
const NAME: &str = "load";
const MOST_RETRIES: u32 = 1000;
const RETRY_DELAY: Duration = Duration::from_millis(5);

pub struct Options {
    worker: String,
    operations: u64,
    shared: Vec<String>,
}

impl Options {
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let (mut worker, mut operations, mut shared) = (None, None, Vec::new());
        for pair in arguments.chunks(2) {
            match *pair {
                ["--worker", name] => worker = Some(name.to_owned()),
                ["--operations", number] => operations = Some(number.parse()?),
                ["--shared", ids] => shared = ids.split(',').map(str::to_owned).collect(),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(Self {
            worker: worker.ok_or(USAGE)?,
            operations: operations.ok_or(USAGE)?,
            shared,
        })
    }
}

pub async fn run(file: &str, options: &Options) -> Result<()> {
    let mut retrier = Retrier { busy_retries: 0 };
    let provider = retrier.run(async || open(file).await).await?;
    for round in 0..options.operations {
        run_round(&provider, &mut retrier, options, round).await?;
    }
    print_line(&json!({
        "worker": options.worker,
        "done": options.operations,
        "busy_retries": retrier.busy_retries,
    }))
}

async fn run_round(
    provider: &SqlitePersistenceProvider,
    retrier: &mut Retrier,
    options: &Options,
    round: u64,
) -> Result<()> {
    let worker = &options.worker;
    let sequence = retrier
        .run(async || provider.next_definition_sequence(NAME).await)
        .await?;

    let data = json!({"worker": worker, "round": round, "step": 0});
    let mut created = WorkflowInstance::new(NAME, 1, data);
    created.name = format!("{NAME}-{sequence}");
    created.execution_pointers = vec![ExecutionPointer::new(0), ExecutionPointer::new(1)];
    let id = &created.id;
    retrier
        .create(async || provider.create_new_workflow(&created).await)
        .await?;

    let mut workflow = retrier
        .run(async || provider.get_workflow_instance(id).await)
        .await?;
    workflow.data["step"] = json!(1);
    let pointer = workflow
        .execution_pointers
        .first_mut()
        .ok_or_else(|| format!("workflow {id} has lost its pointers"))?;
    pointer.retry_count = 1;
    let subscription =
        EventSubscription::new(id, pointer.step_id, &pointer.id, NAME, id, Utc::now());
    let subscriptions = [subscription];
    let subscription_id = &subscriptions[0].id;
    retrier
        .create(async || {
            provider
                .persist_workflow_with_subscriptions(&workflow, &subscriptions)
                .await
        })
        .await?;

    let event = Event::new(NAME, id, json!({"worker": worker, "round": round}));
    retrier
        .create(async || provider.create_event(&event).await)
        .await?;

    let found = retrier
        .run(async || provider.get_subscriptions(NAME, id, FAR_FUTURE).await)
        .await?;
    if !found.iter().map(|found| &found.id).eq([subscription_id]) {
        return Err(format!("workflow {id} does not have its one subscription").into());
    }

    let token = format!("{worker}-{round}");
    let mut tokens = Vec::new();
    for shared in &options.shared {
        let is_set = retrier
            .run(async || {
                provider
                    .set_subscription_token(shared, &token, worker, FAR_FUTURE)
                    .await
            })
            .await?;
        if is_set {
            tokens.push(shared);
        }
    }

    retrier
        .run(async || provider.mark_event_processed(&event.id).await)
        .await?;

    print_line(&json!({
        "worker": worker,
        "round": round,
        "sequence": sequence,
        "workflow_id": id,
        "event_id": event.id,
        "subscription_id": subscription_id,
        "tokens": tokens,
    }))
}

/// Repeats operations that found the database locked, and counts how often.
struct Retrier {
    busy_retries: u64,
}

impl Retrier {
    async fn run<T, E: Display>(
        &mut self,
        operation: impl AsyncFn() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
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
    async fn create<T, E: Display>(
        &mut self,
        operation: impl AsyncFn() -> std::result::Result<T, E>,
    ) -> std::result::Result<(), E> {
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
