use std::sync::Arc;

use super::*;

fn rationed(config: Config, descriptors: u32, ports: u32) -> (Rig, Arc<Ledger>, Arc<Ledger>) {
    let (descriptors, ports) = (Arc::new(Ledger::resource(descriptors)), Arc::new(Ledger::resource(ports)));
    let mut permits = Permits::alone(config.connections_max, config.temporary_max);
    permits.budget = Budget { descriptors: Some(descriptors.clone()), ports: Some(ports.clone()) };
    (Rig::with_permits(config, permits), descriptors, ports)
}

#[test]
fn growth_stops_before_the_machine_is_at_its_end() {
    for (descriptors, ports, cause) in [(10, 100, Cause::Descriptors), (100, 10, Cause::Ports)] {
        let (mut rig, ..) = rationed(small(50), descriptors, ports);
        for _ in 0..20 {
            rig.ticket(1_000);
            while !rig.dials.is_empty() {
                rig.dialed(Ok(ANY));
            }
        }
        assert_eq!(rig.grants.len(), 9, "nine of ten: the last is for those who have nothing");
        let told = |event: &&Event| matches!(event, Event::LocalExhaustion { cause: c, .. } if *c == cause);
        assert_eq!(rig.events.iter().filter(told).count(), 1, "once, not at every try");
        rig.pass(500);
        assert_eq!(rig.events.iter().filter(told).count(), 1);
        assert_eq!(rig.snapshot().counters.local_exhaustions, 1);
    }
}

#[test]
fn the_last_part_goes_to_endpoints_that_have_nothing() {
    let (mut rig, descriptors, _) = rationed(small(50), 10, 100);
    rig.connect(9);
    let mut permits = Permits::alone(5, 0);
    permits.budget.descriptors = Some(descriptors.clone());
    let mut other = Rig::with_permits(small(5), permits);
    other.ticket(1_000);
    assert_eq!((other.dials.len(), descriptors.level()), (1, Level::Exhausted));
}

#[test]
fn what_stands_idle_is_given_back_while_the_machine_runs_short() {
    let (mut rig, descriptors, _) = rationed(small(50), 10, 100);
    rig.connect(9);
    assert_eq!(descriptors.level(), Level::Tight);
    rig.pass(1_000);
    assert_eq!(rig.closed(), [CloseReason::Reclaimed; 5], "half of what is idle");
    assert_eq!(descriptors.level(), Level::Free);
    rig.pass(60_000);
    assert!(rig.closed().is_empty(), "and no more when there is room again");
}

#[test]
fn growth_goes_on_when_the_machine_has_room_again() {
    let (mut rig, descriptors, _) = rationed(small(50), 10, 100);
    rig.connect(1);
    for _ in 0..8 {
        assert!(descriptors.try_take());
    }
    let _held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.pass(100);
    assert!(rig.dials.is_empty());
    descriptors.give();
    rig.pass(10);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn a_warm_pool_that_cannot_be_looks_again_each_second_only() {
    let (mut rig, descriptors, _) = rationed(Config { connections_min: 3, ..small(5) }, 1, 100);
    rig.dialed(Ok(ANY));
    assert_eq!(descriptors.level(), Level::Exhausted);
    let mut wakes = 0;
    let end = rig.now + ms(10_000);
    while let Some(due) = rig.engine.next_timeout().filter(|due| *due < end) {
        rig.now = due;
        rig.engine.handle_timeout(due);
        rig.settle();
        wakes += 1;
    }
    assert!(wakes <= 22, "{wakes} times in ten seconds");
}

#[test]
fn rejecting_says_what_the_machine_lacks() {
    let (mut rig, ..) = rationed(Config { overflow: Overflow::Reject, ..small(50) }, 100, 2);
    rig.connect(2);
    let _held = [rig.lease(), rig.lease()];
    assert_eq!(rig.refused(1_000), Refusal::Full { in_use: 2, denied: Denied::Ports });
}

#[test]
fn what_a_failed_dial_took_is_given_back() {
    let (mut rig, descriptors, ports) = rationed(small(5), 10, 10);
    rig.ticket(1_000);
    assert_eq!((descriptors.used(), ports.used()), (1, 1));
    rig.dialed(Err(Cause::Refused));
    assert_eq!((descriptors.used(), ports.used()), (0, 0));
}
