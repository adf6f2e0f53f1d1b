//! `dump STORE`: prints all that the provider reads from the store, as one JSON document.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{AnyConnection, query_as, query_scalar};
use wfe_core::models::{ExecutionError, ScheduledCommand};

use crate::store::{Provider, Store};
use crate::{FAR_FUTURE, Result, print_line};

pub async fn run(store: &Store) -> Result<()> {
    let provider = store.open().await?;
    let mut tables = store.tables().await?;

    let ids: Vec<String> = query_scalar("SELECT id FROM workflows ORDER BY id")
        .fetch_all(&mut tables)
        .await?;
    let workflows = provider.get_workflow_instances(&ids).await?;
    let mut by_name = BTreeMap::new();
    for workflow in &workflows {
        let named = provider
            .get_workflow_instance_by_name(&workflow.name)
            .await?;
        by_name.insert(&workflow.name, named.id);
    }
    let mut runnable = provider.get_runnable_instances(FAR_FUTURE).await?;
    runnable.sort();
    let mut runnable_events = provider.get_runnable_events(FAR_FUTURE).await?;
    runnable_events.sort();
    let sequences: BTreeMap<String, i64> =
        query_as("SELECT definition_id, next_num FROM definition_sequences")
            .fetch_all(&mut tables)
            .await?
            .into_iter()
            .collect();

    print_line(&json!({
        "workflows": workflows,
        "by_name": by_name,
        "runnable": runnable,
        "runnable_events": runnable_events,
        "events": events(&*provider, &mut tables).await?,
        "subscriptions": subscriptions(&*provider, &mut tables).await?,
        "open_subscriptions": open_subscriptions(&*provider, &mut tables).await?,
        "errors": errors(store, &mut tables).await?,
        "commands": commands(&mut tables).await?,
        "sequences": sequences,
    }))
}

async fn events(provider: &Provider, tables: &mut AnyConnection) -> Result<Value> {
    let ids: Vec<String> = query_scalar("SELECT id FROM events ORDER BY id")
        .fetch_all(tables)
        .await?;
    let mut events = Vec::new();
    for id in &ids {
        events.push(provider.get_event(id).await?);
    }
    Ok(json!(events))
}

async fn subscriptions(provider: &Provider, tables: &mut AnyConnection) -> Result<Value> {
    let ids: Vec<String> = query_scalar("SELECT id FROM event_subscriptions ORDER BY id")
        .fetch_all(tables)
        .await?;
    let mut subscriptions = Vec::new();
    for id in &ids {
        subscriptions.push(provider.get_subscription(id).await?);
    }
    Ok(json!(subscriptions))
}

async fn open_subscriptions(provider: &Provider, tables: &mut AnyConnection) -> Result<Value> {
    let pairs: Vec<(String, String)> =
        query_as("SELECT DISTINCT event_name, event_key FROM event_subscriptions")
            .fetch_all(tables)
            .await?;
    let mut ids = Vec::new();
    for (name, key) in &pairs {
        let found = provider.get_subscriptions(name, key, FAR_FUTURE).await?;
        ids.extend(found.into_iter().map(|subscription| subscription.id));
    }
    ids.sort();
    Ok(json!(ids))
}

async fn errors(store: &Store, tables: &mut AnyConnection) -> Result<Value> {
    let columns = format!(
        "{}, workflow_id, execution_pointer_id, message",
        store.time_as_text("error_time")
    );
    let select = format!("SELECT {columns} FROM execution_errors ORDER BY id");
    let rows: Vec<(String, String, String, String)> = query_as(&select).fetch_all(tables).await?;
    let mut errors = Vec::new();
    for (error_time, workflow_id, execution_pointer_id, message) in rows {
        errors.push(ExecutionError {
            error_time: error_time.parse()?,
            workflow_id,
            execution_pointer_id,
            message,
        });
    }
    Ok(json!(errors))
}

async fn commands(tables: &mut AnyConnection) -> Result<Value> {
    let rows: Vec<(String, String, i64)> =
        query_as("SELECT command_name, data, execute_time FROM scheduled_commands ORDER BY id")
            .fetch_all(tables)
            .await?;
    let mut commands = Vec::new();
    for (command_name, data, execute_time) in rows {
        commands.push(ScheduledCommand {
            command_name: serde_json::from_value(Value::String(command_name))?,
            data,
            execute_time,
        });
    }
    Ok(json!(commands))
}
