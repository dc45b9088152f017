//! Redfish (DSP0266), tolerantly.
