//! The pools that are measured, each over connections that are numbers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bb8::ManageConnection;
use deadpool::managed::{Manager, Metrics, RecycleResult};
use forebay::{Config, Connector, Dial, DialError, Lease, Pool};

use super::{CONNECTIONS, Subject};

/// Makes numbers.
#[derive(Clone, Copy, Debug)]
pub struct Numbers;

/// This project's pool.
#[derive(Clone, Debug)]
pub struct Forebay(Pool<Numbers>);

impl Connector for Numbers {
    type Conn = u64;
    type Endpoint = &'static str;

    async fn connect(&self, _: Dial<&'static str>) -> Result<u64, DialError> {
        Ok(1)
    }
}

impl Subject for Forebay {
    const NAME: &'static str = "forebay";
    type Lease<'a> = Lease<Numbers>;

    async fn new() -> Self {
        let config = Config { connections_max: CONNECTIONS, ..Config::default() };
        Self(Pool::builder(Numbers).endpoint("numbers").config(config).build().expect("the policy is valid"))
    }

    async fn acquire(&self) -> Self::Lease<'_> {
        self.0.acquire().await.expect("a connection")
    }

    fn release(&self, lease: Self::Lease<'_>) {
        lease.complete();
    }
}

/// bb8 0.9.
#[derive(Clone, Debug)]
pub struct Bb8(bb8::Pool<Numbers>);

impl ManageConnection for Numbers {
    type Connection = u64;
    type Error = Infallible;

    async fn connect(&self) -> Result<u64, Infallible> {
        Ok(1)
    }

    async fn is_valid(&self, _: &mut u64) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut u64) -> bool {
        false
    }
}

impl Subject for Bb8 {
    const NAME: &'static str = "bb8";
    type Lease<'a> = bb8::PooledConnection<'a, Numbers>;

    async fn new() -> Self {
        Self(bb8::Pool::builder().max_size(CONNECTIONS).build(Numbers).await.expect("infallible"))
    }

    async fn acquire(&self) -> Self::Lease<'_> {
        self.0.get().await.expect("a connection")
    }

    fn release(&self, lease: Self::Lease<'_>) {
        drop(lease);
    }
}

/// deadpool 0.13.
#[derive(Clone, Debug)]
pub struct Deadpool(deadpool::managed::Pool<Numbers>);

impl Manager for Numbers {
    type Type = u64;
    type Error = Infallible;

    async fn create(&self) -> Result<u64, Infallible> {
        Ok(1)
    }

    async fn recycle(&self, _: &mut u64, _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

impl Subject for Deadpool {
    const NAME: &'static str = "deadpool";
    type Lease<'a> = deadpool::managed::Object<Numbers>;

    async fn new() -> Self {
        let pool = deadpool::managed::Pool::builder(Numbers).max_size(CONNECTIONS as usize).build();
        Self(pool.expect("no time-outs, so no runtime is needed"))
    }

    async fn acquire(&self) -> Self::Lease<'_> {
        self.0.get().await.expect("a connection")
    }

    fn release(&self, lease: Self::Lease<'_>) {
        drop(lease);
    }
}

/// No pool: a vector behind a lock, and whoever finds it empty tries again later. No limit, no order, no time-out.
#[derive(Clone, Debug)]
pub struct BareVec(Arc<Mutex<Vec<u64>>>);

impl Subject for BareVec {
    const NAME: &'static str = "mutex + vec";
    type Lease<'a> = u64;

    async fn new() -> Self {
        Self(Arc::new(Mutex::new(vec![1; CONNECTIONS as usize])))
    }

    async fn acquire(&self) -> u64 {
        loop {
            let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match taken {
                Some(number) => return number,
                None => tokio::task::yield_now().await,
            }
        }
    }

    fn release(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }
}
