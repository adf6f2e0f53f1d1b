//! `load STORE`: a write load, to be run beside other programs that write to the same store.

use chrono::Utc;
use serde_json::json;
use wfe_core::models::{Event, EventSubscription, ExecutionPointer, WorkflowInstance};

use crate::retrier::Retrier;
use crate::store::{Provider, Store};
use crate::{FAR_FUTURE, Result, USAGE, print_line};

/// Of the definition whose sequence is drawn, of the events and of the workflows' names.
const NAME: &str = "load";

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

pub async fn run(store: &Store, options: &Options) -> Result<()> {
    let mut retrier = Retrier::default();
    let provider = retrier.run(|| store.open()).await?;
    for round in 0..options.operations {
        run_round(&*provider, &mut retrier, options, round).await?;
    }
    print_line(&json!({
        "worker": options.worker,
        "done": options.operations,
        "busy_retries": retrier.busy_retries,
    }))
}

async fn run_round(
    provider: &Provider,
    retrier: &mut Retrier,
    options: &Options,
    round: u64,
) -> Result<()> {
    let worker = &options.worker;
    let sequence = retrier
        .run(|| provider.next_definition_sequence(NAME))
        .await?;

    let data = json!({"worker": worker, "round": round, "step": 0});
    let mut created = WorkflowInstance::new(NAME, 1, data);
    created.name = format!("{NAME}-{sequence}");
    created.execution_pointers = vec![ExecutionPointer::new(0), ExecutionPointer::new(1)];
    let id = &created.id;
    retrier
        .create(|| provider.create_new_workflow(&created))
        .await?;

    let mut workflow = retrier.run(|| provider.get_workflow_instance(id)).await?;
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
        .create(|| provider.persist_workflow_with_subscriptions(&workflow, &subscriptions))
        .await?;

    let event = Event::new(NAME, id, json!({"worker": worker, "round": round}));
    retrier.create(|| provider.create_event(&event)).await?;

    let found = retrier
        .run(|| provider.get_subscriptions(NAME, id, FAR_FUTURE))
        .await?;
    if !found.iter().map(|found| &found.id).eq([subscription_id]) {
        return Err(format!("workflow {id} does not have its one subscription").into());
    }

    let token = format!("{worker}-{round}");
    let mut tokens = Vec::new();
    for shared in &options.shared {
        let is_set = retrier
            .run(|| provider.set_subscription_token(shared, &token, worker, FAR_FUTURE))
            .await?;
        if is_set {
            tokens.push(shared);
        }
    }

    retrier
        .run(|| provider.mark_event_processed(&event.id))
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
