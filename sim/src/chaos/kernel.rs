//! One thread and a clock that stands still while anything can be done: where the whole fleet runs. Shell.

use std::future::Future;

/// Runs a future, and all that it spawns, under virtual time.
///
/// # Errors
/// When the kernel gives no runtime.
pub fn run<T>(future: impl Future<Output = T>) -> Result<T, String> {
    // A node reserves much more than it touches. In pages of two megabytes all of that is cleared and stays: for a hundred nodes
    // twice the memory, and a sixth of the time. Where the kernel does not know the call, it is only slower.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    Ok(runtime.map_err(|e| format!("no runtime: {e}"))?.block_on(future))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn an_hour_passes_at_once() {
        let took = super::run(async {
            let began = raft_store::rt::now();
            raft_store::rt::sleep(Duration::from_secs(3_600)).await;
            raft_store::rt::elapsed(began)
        });
        assert!(took.unwrap() >= Duration::from_secs(3_600));
    }
}
