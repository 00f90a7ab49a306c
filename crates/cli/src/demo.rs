//! x
use crate::args::DemoArgs;
use crate::failure::Failure;
pub(crate) fn run(_args: &DemoArgs, _serve: &crate::args::ServeArgs) -> Result<(), Failure> {
    Ok(())
}
