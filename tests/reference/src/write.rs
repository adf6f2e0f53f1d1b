//! `write STORE`: puts what a JSON document on stdin describes into the store.

use std::collections::BTreeMap;
use std::io;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance,
};

use crate::store::Store;
use crate::{Result, print_line};

/// Fields are in the order in which they are applied. Unknown keys are refused, so that a
/// misspelt one cannot make a test pass by writing nothing.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    workflows: Vec<WorkflowInstance>,
    persist: Vec<Persist>,
    subscriptions: Vec<EventSubscription>,
    events: Vec<Event>,
    processed_events: Vec<String>,
    errors: Vec<ExecutionError>,
    commands: Vec<ScheduledCommand>,
    terminate: Vec<String>,
    tokens: Vec<Token>,
    sequences: BTreeMap<String, u32>,
}

/// Whether `subscriptions` is there decides which of the two persisting methods is called.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Persist {
    workflow: WorkflowInstance,
    subscriptions: Option<Vec<EventSubscription>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    id: String,
    token: String,
    worker_id: String,
    expiry: DateTime<Utc>,
}

pub async fn run(store: &Store) -> Result<()> {
    let document: Document = serde_json::from_reader(io::stdin().lock())?;
    let provider = store.open().await?;

    for workflow in &document.workflows {
        provider.create_new_workflow(workflow).await?;
    }
    for Persist {
        workflow,
        subscriptions,
    } in &document.persist
    {
        match subscriptions {
            Some(subscriptions) => {
                provider
                    .persist_workflow_with_subscriptions(workflow, subscriptions)
                    .await?
            }
            None => provider.persist_workflow(workflow).await?,
        }
    }
    for subscription in &document.subscriptions {
        provider.create_event_subscription(subscription).await?;
    }
    for event in &document.events {
        provider.create_event(event).await?;
    }
    for id in &document.processed_events {
        provider.mark_event_processed(id).await?;
    }
    provider.persist_errors(&document.errors).await?;
    for command in &document.commands {
        provider.schedule_command(command).await?;
    }
    for id in &document.terminate {
        provider.terminate_subscription(id).await?;
    }
    for token in &document.tokens {
        provider
            .set_subscription_token(&token.id, &token.token, &token.worker_id, token.expiry)
            .await?;
    }
    let mut sequences: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (definition, times) in &document.sequences {
        for _ in 0..*times {
            let number = provider.next_definition_sequence(definition).await?;
            sequences.entry(definition).or_default().push(number);
        }
    }

    print_line(&json!(sequences))
}
