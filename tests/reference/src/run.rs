//! `run STORE`: runs each runnable workflow to its end with the engine of the crates, a step at a time.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use serde_json::{Value, json};
use wfe_core::builder::{InlineStep, WorkflowBuilder};
use wfe_core::executor::{StepRegistry, WorkflowExecutor};
use wfe_core::models::{QueueType, WorkflowStatus};
use wfe_core::traits::{DistributedLockProvider, QueueProvider};

use crate::store::Store;
use crate::{Result, print_line};

/// Executions of one workflow, of which each does one step.
const MOST_EXECUTIONS: usize = 10;

pub async fn run(store: &Store) -> Result<()> {
    let provider = store.open().await?;
    let definition = WorkflowBuilder::<Value>::new()
        .start_with::<InlineStep>()
        .then::<InlineStep>()
        .then::<InlineStep>()
        .build("order", 1);
    let mut steps = StepRegistry::new();
    steps.register::<InlineStep>();
    let executor = WorkflowExecutor::new(Arc::clone(&provider), Arc::new(Alone), Arc::new(Alone));

    for id in provider.get_runnable_instances(Utc::now()).await? {
        for _ in 0..MOST_EXECUTIONS {
            executor.execute(&id, &definition, &steps, None).await?;
        }
        let workflow = provider.get_workflow_instance(&id).await?;
        if workflow.status != WorkflowStatus::Complete {
            return Err(format!("workflow {id} has not come to its end").into());
        }
        print_line(&json!(id))?;
    }
    Ok(())
}

/// The locks and queues of a host that is the only one.
struct Alone;

#[async_trait]
impl DistributedLockProvider for Alone {
    async fn acquire_lock(&self, _: &str) -> wfe_core::Result<bool> {
        Ok(true)
    }

    async fn release_lock(&self, _: &str) -> wfe_core::Result<()> {
        Ok(())
    }

    async fn start(&self) -> wfe_core::Result<()> {
        Ok(())
    }

    async fn stop(&self) -> wfe_core::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl QueueProvider for Alone {
    async fn queue_work(&self, _: &str, _: QueueType) -> wfe_core::Result<()> {
        Ok(())
    }

    async fn dequeue_work(&self, _: QueueType) -> wfe_core::Result<Option<String>> {
        Ok(None)
    }

    fn is_dequeue_blocking(&self) -> bool {
        false
    }

    async fn start(&self) -> wfe_core::Result<()> {
        Ok(())
    }

    async fn stop(&self) -> wfe_core::Result<()> {
        Ok(())
    }
}
