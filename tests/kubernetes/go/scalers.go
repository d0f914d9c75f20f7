// Replaces KEDA's other triggers, whose libraries would take most of the build.
package scalers

const externalMetricType = "External"
