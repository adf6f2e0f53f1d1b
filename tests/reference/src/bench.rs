//! `bench STORE`: measures the provider, as the baseline for what is written in another language.
//! The store is one that no earlier run has left: a new one, or one with other workflows in it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use cpu_time::ProcessTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wfe_core::WfeError;
use wfe_core::models::{
    Event, EventSubscription, ExecutionPointer, WorkflowInstance, WorkflowStatus,
};

use crate::retrier::Retrier;
use crate::store::{Provider, Store};
use crate::{FAR_FUTURE, Result, USAGE, print_line};

/// Of the definition whose sequence is drawn, of the events and of the workflows' names.
const NAME: &str = "bench";
const POINTERS: usize = 5;
const MANY_POINTERS: usize = 1000;

pub struct Options {
    workload: Workload,
    callers: NonZeroUsize,
    operations: NonZeroUsize,
}

impl Options {
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let (mut workload, mut callers, mut operations) = (None, None, None);
        for pair in arguments.chunks(2) {
            match *pair {
                ["--workload", name] => workload = Some(serde_json::from_value(json!(name))?),
                ["--callers", number] => callers = Some(number.parse()?),
                ["--operations", number] => operations = Some(number.parse()?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(Self {
            workload: workload.ok_or(USAGE)?,
            callers: callers.ok_or(USAGE)?,
            operations: operations.ok_or(USAGE)?,
        })
    }
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Workload {
    Lifecycle,
    Persist,
    Get,
    Sequence,
    BigPersist,
    BigGet,
}

pub async fn run(store: &Store, options: &Options) -> Result<()> {
    let (callers, operations) = (options.callers.get(), options.operations.get());
    let provider = store.open().await?;
    let mut jobs = Vec::new();
    for _ in 0..callers {
        jobs.push(Job::prepare(&*provider, options.workload).await?);
    }

    let written = store.bytes_written().await?;
    let (start, cpu) = (Instant::now(), ProcessTime::now());
    let mut tasks = JoinSet::new();
    for (caller, job) in jobs.into_iter().enumerate() {
        let share = operations / callers + usize::from(caller < operations % callers);
        tasks.spawn(call(Arc::clone(&provider), job, share));
    }
    let mut ended = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        ended.push(joined??);
    }
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu.elapsed().as_secs_f64());
    let written = match (written, store.bytes_written().await?) {
        (Some(before), Some(after)) => Some(after - before),
        _ => None,
    };

    let mut busy_retries = 0;
    for (job, retrier) in &ended {
        job.check(&*provider).await?;
        busy_retries += retrier.busy_retries;
    }
    match options.workload {
        Workload::Lifecycle => check_lifecycles(&*provider, operations).await?,
        Workload::Sequence => check_sequence(&*provider, operations).await?,
        Workload::Persist | Workload::Get | Workload::BigPersist | Workload::BigGet => (),
    }
    print_line(&json!({
        "workload": options.workload,
        "callers": callers,
        "operations": operations,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bytes_written": written,
        "busy_retries": busy_retries,
    }))
}

/// What one caller does again and again. A workflow is its own, and is in the store already.
enum Job {
    Lifecycle,
    Sequence,
    Persist(Box<WorkflowInstance>),
    Get(Box<WorkflowInstance>),
}

impl Job {
    async fn prepare(provider: &Provider, workload: Workload) -> Result<Self> {
        Ok(match workload {
            Workload::Lifecycle => Self::Lifecycle,
            Workload::Sequence => Self::Sequence,
            Workload::Persist => Self::Persist(stored(provider, POINTERS).await?),
            Workload::BigPersist => Self::Persist(stored(provider, MANY_POINTERS).await?),
            Workload::Get => Self::Get(stored(provider, POINTERS).await?),
            Workload::BigGet => Self::Get(stored(provider, MANY_POINTERS).await?),
        })
    }

    async fn check(&self, provider: &Provider) -> Result<()> {
        if let Self::Persist(workflow) | Self::Get(workflow) = self {
            let mut read = provider.get_workflow_instance(&workflow.id).await?;
            // PostgreSQL's provider returns them in no order.
            read.execution_pointers
                .sort_by_key(|pointer| pointer.step_id);
            if json!(read) != json!(workflow) {
                return Err(format!("workflow {} is not as it was persisted", workflow.id).into());
            }
        }
        Ok(())
    }
}

async fn stored(provider: &Provider, pointers: usize) -> Result<Box<WorkflowInstance>> {
    let mut workflow = WorkflowInstance::new(NAME, 1, data(0));
    workflow.name = format!("{NAME}-{}", workflow.id);
    workflow.execution_pointers = fresh_pointers(pointers);
    // A store may cut times, to microseconds.
    let id = provider.create_new_workflow(&workflow).await?;
    workflow.create_time = provider.get_workflow_instance(&id).await?.create_time;
    Ok(Box::new(workflow))
}

fn data(round: usize) -> Value {
    json!({"customer": "alice", "items": [1, 2, 3], "round": round})
}

fn fresh_pointers(count: usize) -> Vec<ExecutionPointer> {
    let fresh = |number| {
        let mut pointer = ExecutionPointer::new(number);
        pointer.persistence_data = Some(json!({"cursor": number}));
        pointer.step_name = Some(format!("step {number}"));
        pointer.scope = vec!["outer".to_owned(), "inner".to_owned()];
        pointer.extension_attributes = [("owner".to_owned(), json!("alice"))].into();
        pointer
    };
    (0..count).map(fresh).collect()
}

/// A task, whose errors have to be fit to be sent to another thread: [`crate::Result`]'s are not.
async fn call(
    provider: Arc<Provider>,
    mut job: Job,
    operations: usize,
) -> wfe_core::Result<(Job, Retrier)> {
    let mut retrier = Retrier::default();
    for round in 1..=operations {
        match &mut job {
            Job::Lifecycle => run_lifecycle(&*provider, &mut retrier).await?,
            Job::Sequence => {
                retrier
                    .run(|| provider.next_definition_sequence(NAME))
                    .await?;
            }
            Job::Persist(workflow) => {
                workflow.data = data(round);
                let position = round % workflow.execution_pointers.len();
                workflow.execution_pointers[position].retry_count += 1;
                retrier.run(|| provider.persist_workflow(workflow)).await?;
            }
            Job::Get(workflow) => {
                let read = retrier
                    .run(|| provider.get_workflow_instance(&workflow.id))
                    .await?;
                if read.execution_pointers.len() != workflow.execution_pointers.len() {
                    return Err(WfeError::Persistence("a pointer is missing".to_owned()));
                }
            }
        }
    }
    Ok((job, retrier))
}

async fn run_lifecycle(provider: &Provider, retrier: &mut Retrier) -> wfe_core::Result<()> {
    let sequence = retrier
        .run(|| provider.next_definition_sequence(NAME))
        .await?;

    let mut created = WorkflowInstance::new(NAME, 1, data(0));
    created.name = format!("{NAME}-{sequence}");
    created.execution_pointers = fresh_pointers(1);
    let id = &created.id;
    retrier
        .create(|| provider.create_new_workflow(&created))
        .await?;

    let mut workflow = retrier.run(|| provider.get_workflow_instance(id)).await?;
    workflow.data = data(1);
    workflow.execution_pointers = fresh_pointers(3);
    let waiting = &workflow.execution_pointers[2];
    let subscriptions = [EventSubscription::new(
        id,
        waiting.step_id,
        &waiting.id,
        NAME,
        id,
        Utc::now(),
    )];
    retrier
        .create(|| provider.persist_workflow_with_subscriptions(&workflow, &subscriptions))
        .await?;

    let event = Event::new(NAME, id, json!({"paid": true}));
    retrier.create(|| provider.create_event(&event)).await?;
    let found = retrier
        .run(|| provider.get_subscriptions(NAME, id, event.event_time))
        .await?;
    let subscription = found
        .first()
        .ok_or_else(|| WfeError::SubscriptionNotFound(subscriptions[0].id.clone()))?;

    let mut workflow = retrier.run(|| provider.get_workflow_instance(id)).await?;
    workflow.data = data(2);
    workflow.execution_pointers = fresh_pointers(5);
    workflow.status = WorkflowStatus::Complete;
    workflow.complete_time = Some(Utc::now());
    retrier.run(|| provider.persist_workflow(&workflow)).await?;
    retrier
        .run(|| provider.terminate_subscription(&subscription.id))
        .await?;
    retrier
        .run(|| provider.mark_event_processed(&event.id))
        .await
}

async fn check_lifecycles(provider: &Provider, operations: usize) -> Result<()> {
    for number in 1..=operations {
        let name = format!("{NAME}-{number}");
        let workflow = provider.get_workflow_instance_by_name(&name).await?;
        let events = provider.get_events(NAME, &workflow.id, FAR_FUTURE).await?;
        let open = provider
            .get_subscriptions(NAME, &workflow.id, FAR_FUTURE)
            .await?;
        if workflow.status != WorkflowStatus::Complete
            || workflow.data != data(2)
            || workflow.execution_pointers.len() != 5
            || events.len() != 1
            || !open.is_empty()
        {
            return Err(format!("workflow {name} has not come to its end").into());
        }
    }
    if !provider.get_runnable_events(FAR_FUTURE).await?.is_empty() {
        return Err("an event is not processed".into());
    }
    check_sequence(provider, operations).await
}

async fn check_sequence(provider: &Provider, operations: usize) -> Result<()> {
    let next = provider.next_definition_sequence(NAME).await?;
    if next != operations as u64 + 1 {
        return Err(format!("{next} is the next number after {operations} operations").into());
    }
    Ok(())
}
