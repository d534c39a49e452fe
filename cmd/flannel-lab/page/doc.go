// Package page writes what was measured where people read it: a section of a
// page, between two lines that mark it, and a picture beside the page.
//
//	samples -> Median, Percentile -> Number -> table \
//	                                                  >- Section.Write -> docs/benchmarks.md
//	           Plot: bars, lines ------------ picture /                   docs/benchmarks.svg
//
// # Contract
//
//   - A page has its words, which a run does not touch, and for each [Section] a
//     place that a run writes whole or not at all.
//   - The picture is written before the page that speaks of it.
//   - A figure that does not exist is NaN, and stands in tables as [Absent].
package page
