//! The scale simulation, small: its shape, so that the tables of docs/scale.md can't rot unseen.

use embermesh_sim::scale::gossip::spread_alone;
use embermesh_sim::scale::{Setting, run};

#[test]
fn forty_nodes_share_what_is_warm_and_know_of_it_soon() {
    let setting = Setting { warm_up_s: 12, seconds: 8, ..Setting::new(40, 800, 1) };
    let report = run(&setting);
    println!("{report}");
    assert_eq!(report, run(&setting), "one seed decides everything");
    assert!(report.arrived > 300, "{report}");
    assert_eq!(report.answered + report.refused + report.indeterminate, report.arrived, "{report}");
    assert_eq!((report.refused, report.indeterminate), (0, 0), "{report}");
    assert!(report.spread.took_ms(990) < 1_000.0, "known to all after {} ms", report.spread.took_ms(990));
    assert!(report.alone_share() > 0.3, "{} of the calls found nothing warm at their own node", report.alone_share());
    assert!(report.cold_share() < 0.1, "{} cold starts for each activation", report.cold_share());
    assert!(report.stale_share() < 0.25, "{} of what was asked for was gone", report.stale_share());
    assert!(report.messages_each() < 10.0, "{} messages for each activation", report.messages_each());
}

#[test]
fn cells_keep_gossip_small_and_answer_the_same() {
    let whole = run(&Setting { warm_up_s: 12, seconds: 6, ..Setting::new(40, 400, 1) });
    let cells = run(&Setting { warm_up_s: 12, seconds: 6, cells: 4, ..Setting::new(40, 400, 1) });
    assert!(cells.spread.kb_per_node_s() < whole.spread.kb_per_node_s() / 2.0, "{} {}", cells.row(), whole.row());
    assert_eq!((cells.refused, cells.answered), (0, cells.arrived));
}

/// Measured of chitchat itself: 240 ms at 10 nodes, 430 ms at 100 (p50, a value known to all; docs/scale.md).
#[test]
fn gossip_takes_as_long_as_it_does_in_chitchat() {
    for (members, median) in [(10, 240.0), (100, 430.0)] {
        let spread = spread_alone(members, 10, 1);
        let took = spread.took_ms(500);
        assert!((took / median - 1.0f64).abs() < 0.15, "{took} ms among {members}, chitchat took {median} ms");
    }
}
