// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_RUN_H
#define UB_RUN_H

#include "ns3/ub-fabric-arrays.h"
#include "ns3/ub-records.h"

#include <cstdint>

/**
 * @file
 * @ingroup ub-fabric
 * The face of a fabric for other languages: C functions of numbers, strings and flat arrays only.
 *
 * Whoever has loaded the library calls them by name and needs no header of ns-3, nor a compiler.
 */

namespace ns3
{

class UbFabric;

/**
 * @ingroup ub-fabric
 * @brief A simulation: it takes the simulator from its first event to its destruction.
 */
struct UbRun;

extern "C"
{
    /**
     * @return Version of the Python package that the library was built for; see UbVersion.
     */
    const char* UbRunPackageVersion();

    /**
     * Get ns-3 ready for a run: UbSimulatorImpl, unless a simulator is at work. Time must count
     * picoseconds.
     * @return The run.
     */
    UbRun* UbRunCreate();

    /**
     * End a run, and let another begin.
     * @param [in] run The run.
     */
    void UbRunDestroy(UbRun* run);

    /**
     * Set an attribute of the fabric, before it is built.
     * @param [in] run The run.
     * @param [in] name Its name.
     * @param [in] value Its value, as ns-3 reads it from text.
     */
    void UbRunSetAttribute(UbRun* run, const char* name, const char* value);

    /**
     * Build the fabric.
     * @param [in] run The run.
     * @param [in] arrays What to build.
     */
    void UbRunBuild(UbRun* run, const UbFabricArrays* arrays);

    /**
     * @param [in] run The run.
     * @return The fabric, for those who know its class.
     */
    UbFabric* UbRunGetFabric(const UbRun* run);

    /**
     * See UbFabric::AddChunk.
     * @param [in] run The run.
     * @param [in] flows The flows.
     * @param [in] nFlows Number of flows.
     * @param [in] tasks The tasks.
     * @param [in] nTasks Number of tasks.
     * @param [in] firstTask Number of the first task in the trace.
     * @param [in] sendOrder Flows grouped by sending task.
     * @param [in] depStart [nTasks + 1] start of a task's entries in `deps`.
     * @param [in] deps Numbers in the trace of the tasks depended on.
     * @param [in] openOrder Open-loop flows in order of their start.
     * @param [in] nOpen Number of open-loop flows.
     * @param [in] accounts [nFlows] where the time of the flows goes, nullptr for nowhere.
     * @param [in] isLast Whether no chunk follows.
     * @return Number of the chunk, or -1 if too many are at work.
     */
    int64_t UbRunAddChunk(UbRun* run,
                          UbFlowRecord* flows,
                          uint32_t nFlows,
                          UbTaskRecord* tasks,
                          uint32_t nTasks,
                          uint64_t firstTask,
                          const uint32_t* sendOrder,
                          const uint64_t* depStart,
                          const uint64_t* deps,
                          const uint32_t* openOrder,
                          uint32_t nOpen,
                          UbFlowAccount* accounts,
                          bool isLast);

    /**
     * Simulate until a chunk is needed, about so many packet-hops are done, or nothing is left.
     * @param [in] run The run.
     * @param [in] packetHops The packet-hops, 0 for no limit.
     */
    void UbRunRun(UbRun* run, uint64_t packetHops);

    /**
     * @param [in] run The run.
     * @return See UbFabric::TakeCompleteChunk.
     */
    int64_t UbRunTakeCompleteChunk(UbRun* run);

    /**
     * @param [in] run The run.
     * @return See UbFabric::NeedsChunk.
     */
    bool UbRunNeedsChunk(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Whether the last UbRunRun ended because no event was left.
     */
    bool UbRunIsFinished(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return See UbFabric::Leftover; valid until the next call.
     */
    const char* UbRunLeftover(UbRun* run);

    /**
     * @param [in] run The run.
     * @return The time in picoseconds.
     */
    int64_t UbRunGetNowPs(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Packets times links crossed.
     */
    uint64_t UbRunGetPacketHops(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Packets sent.
     */
    uint64_t UbRunGetPacketsSent(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Packets lost with dead switches or for want of a route.
     */
    uint64_t UbRunGetPacketsLost(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Events of planes and endpoints.
     */
    uint64_t UbRunGetFabricEvents(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Payload bytes sent by flows.
     */
    uint64_t UbRunGetBytesSent(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Payload bytes of flows delivered.
     */
    uint64_t UbRunGetBytesDelivered(const UbRun* run);

    /**
     * Write statistics of all links.
     * @param [in] run The run.
     * @param [out] packets [nLinks] packets sent.
     * @param [out] bytes [nLinks] bytes sent.
     * @param [out] busyPs [nLinks] time spent sending.
     * @param [out] maxQueueBytes [nLinks] most bytes that waited.
     * @param [out] noCreditPs [nLinks] time with packets waiting and no credit.
     * @param [out] retries [nLinks] transmissions that a bit error spoilt.
     */
    void UbRunReadLinkStats(const UbRun* run,
                            uint64_t* packets,
                            uint64_t* bytes,
                            int64_t* busyPs,
                            uint64_t* maxQueueBytes,
                            int64_t* noCreditPs,
                            uint64_t* retries);

    /**
     * See UbFabric::ScheduleLink.
     * @param [in] run The run.
     * @param [in] timePs The time.
     * @param [in] link The link.
     * @param [in] bytesPerS Its rate from then on, 0 for down.
     * @param [in] bitErrorRate Its bit error rate from then on.
     */
    void UbRunScheduleLink(UbRun* run,
                           int64_t timePs,
                           uint32_t link,
                           uint64_t bytesPerS,
                           double bitErrorRate);

    /**
     * See UbFabric::ScheduleSwitch.
     * @param [in] run The run.
     * @param [in] timePs The time.
     * @param [in] node The switch.
     * @param [in] isDead Whether it dies.
     */
    void UbRunScheduleSwitch(UbRun* run, int64_t timePs, uint32_t node, bool isDead);

    /**
     * See UbFabric::ScheduleRoutes.
     * @param [in] run The run.
     * @param [in] timePs The time.
     * @param [in] arrays The fabric as it is then.
     */
    void UbRunScheduleRoutes(UbRun* run, int64_t timePs, const UbFabricArrays* arrays);

    /**
     * See UbFabric::ReportBrokenLinks.
     * @param [in] run The run.
     */
    void UbRunReportBrokenLinks(UbRun* run);

    /**
     * @param [in] run The run.
     * @return Links that gave up since the last UbRunReadBroken.
     */
    uint32_t UbRunCountBroken(UbRun* run);

    /**
     * Write which links gave up, and forget them.
     * @param [in] run The run.
     * @param [out] links [UbRunCountBroken] the links.
     * @param [out] timesPs [UbRunCountBroken] when.
     */
    void UbRunReadBroken(UbRun* run, uint32_t* links, int64_t* timesPs);

    /**
     * @param [in] run The run.
     * @return Whether the watchdog stopped the run.
     */
    bool UbRunIsStalled(const UbRun* run);

    /**
     * @param [in] run The run.
     * @return Links that hold packets and cannot send them.
     */
    uint32_t UbRunCountStalledLinks(const UbRun* run);

    /**
     * Write which links hold packets and cannot send them.
     * @param [in] run The run.
     * @param [out] links [UbRunCountStalledLinks] the links.
     */
    void UbRunReadStalledLinks(const UbRun* run, uint32_t* links);

    /**
     * @param [in] run The run.
     * @return Samples since the last UbRunReadSamples.
     */
    uint32_t UbRunCountSamples(const UbRun* run);

    /**
     * Write the samples, and forget them.
     * @param [in] run The run.
     * @param [out] timesPs [UbRunCountSamples] the times.
     * @param [out] bytes [UbRunCountSamples][nLinks] bytes sent so far.
     * @param [out] waitingBytes [UbRunCountSamples][nLinks] bytes waiting.
     */
    void UbRunReadSamples(UbRun* run, int64_t* timesPs, uint64_t* bytes, uint64_t* waitingBytes);

    /**
     * @param [in] run The run.
     * @return Whether a source gave up a packet; see UbFabric::GetError.
     */
    bool UbRunHasFailed(const UbRun* run);

    /**
     * Write which packet a source gave up.
     * @param [in] run The run.
     * @param [out] failure [5] source and destination (nodes), network, time in picoseconds, and
     * whether there was a way.
     */
    void UbRunReadFailure(const UbRun* run, int64_t* failure);
}

} // namespace ns3

#endif // UB_RUN_H
