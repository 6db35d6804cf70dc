// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_RUN_H
#define UB_RUN_H

#include "ns3/string.h" // values of attributes, for those who set them from another language
#include "ns3/ub-fabric.h"
#include "ns3/uinteger.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief The face of a fabric for other languages: numbers, strings and flat arrays only.
 *
 * One object is one simulation: it takes the simulator from its first event to its destruction.
 */
class UbRun
{
  public:
    /**
     * Get ns-3 ready for a run: picoseconds, and UbSimulatorImpl unless a simulator is at work.
     */
    UbRun();
    ~UbRun();

    UbRun(const UbRun&) = delete;
    UbRun& operator=(const UbRun&) = delete;

    /**
     * Set an attribute of the fabric, before it is built.
     * @param [in] name Its name.
     * @param [in] value Its value, as ns-3 reads it from text.
     */
    void SetAttribute(const std::string& name, const std::string& value);

    /**
     * Build the fabric.
     * @param [in] arrays What to build.
     */
    void Build(const UbFabricArrays& arrays);

    /**
     * @return The fabric.
     */
    Ptr<UbFabric> GetFabric() const;

    /**
     * See UbFabric::AddChunk; addresses are those of the arrays of UbChunkArrays.
     * @param [in] flows Address of the flows.
     * @param [in] nFlows Number of flows.
     * @param [in] tasks Address of the tasks.
     * @param [in] nTasks Number of tasks.
     * @param [in] firstTask Number of the first task in the trace.
     * @param [in] sendOrder Flows grouped by sending task.
     * @param [in] depStart [nTasks + 1] start of a task's entries in `deps`.
     * @param [in] deps Numbers in the trace of the tasks depended on.
     * @param [in] openOrder Open-loop flows in order of their start.
     * @param [in] nOpen Number of open-loop flows.
     * @param [in] accounts Where the time of the flows goes, 0 for nowhere.
     * @param [in] isLast Whether no chunk follows.
     * @return Number of the chunk, or -1 if too many are at work.
     */
    int64_t AddChunk(uint64_t flows,
                     uint32_t nFlows,
                     uint64_t tasks,
                     uint32_t nTasks,
                     uint64_t firstTask,
                     uint64_t sendOrder,
                     uint64_t depStart,
                     uint64_t deps,
                     uint64_t openOrder,
                     uint32_t nOpen,
                     uint64_t accounts,
                     bool isLast);

    /**
     * Simulate until a chunk is needed, about so many packet-hops are done, or nothing is left.
     * @param [in] packetHops The packet-hops, 0 for no limit.
     */
    void Run(uint64_t packetHops);

    /// @return See UbFabric::TakeCompleteChunk.
    int64_t TakeCompleteChunk();
    /// @return See UbFabric::NeedsChunk.
    bool NeedsChunk() const;
    /// @return Whether the last Run ended because no event was left.
    bool IsFinished() const;
    /// @return See UbFabric::Leftover.
    std::string Leftover() const;
    /// @return The time in picoseconds.
    int64_t GetNowPs() const;
    /// @return Packets times links crossed.
    uint64_t GetPacketHops() const;
    /// @return Packets sent.
    uint64_t GetPacketsSent() const;
    /// @return Events of planes and endpoints.
    uint64_t GetFabricEvents() const;
    /// @return Payload bytes sent by flows.
    uint64_t GetBytesSent() const;
    /// @return Payload bytes of flows delivered.
    uint64_t GetBytesDelivered() const;

    /**
     * Write statistics of all links.
     * @param [out] packets [nLinks] packets sent.
     * @param [out] bytes [nLinks] bytes sent.
     * @param [out] busyPs [nLinks] time spent sending.
     * @param [out] maxQueueBytes [nLinks] most bytes that waited.
     * @param [out] noCreditPs [nLinks] time with packets waiting and no credit.
     * @param [out] retries [nLinks] transmissions that a bit error spoilt.
     */
    void ReadLinkStats(uint64_t* packets,
                       uint64_t* bytes,
                       int64_t* busyPs,
                       uint64_t* maxQueueBytes,
                       int64_t* noCreditPs,
                       uint64_t* retries) const;

    /**
     * See UbFabric::ScheduleLink.
     * @param [in] timePs The time.
     * @param [in] link The link.
     * @param [in] bytesPerS Its rate from then on, 0 for down.
     * @param [in] bitErrorRate Its bit error rate from then on.
     */
    void ScheduleLink(int64_t timePs, uint32_t link, uint64_t bytesPerS, double bitErrorRate);

    /**
     * See UbFabric::ScheduleSwitch.
     * @param [in] timePs The time.
     * @param [in] node The switch.
     * @param [in] isDead Whether it dies.
     */
    void ScheduleSwitch(int64_t timePs, uint32_t node, bool isDead);

    /**
     * See UbFabric::ScheduleRoutes.
     * @param [in] timePs The time.
     * @param [in] arrays The fabric as it is then.
     */
    void ScheduleRoutes(int64_t timePs, const UbFabricArrays& arrays);

    /// See UbFabric::ReportBrokenLinks.
    void ReportBrokenLinks();

    /// @return Links that gave up since the last ReadBroken.
    uint32_t CountBroken();

    /**
     * Write which links gave up, and forget them.
     * @param [out] links [CountBroken()] the links.
     * @param [out] timesPs [CountBroken()] when.
     */
    void ReadBroken(uint32_t* links, int64_t* timesPs);

    /// @return Whether the watchdog stopped the run.
    bool IsStalled() const;
    /// @return Links that hold packets and cannot send them.
    uint32_t CountStalledLinks() const;

    /**
     * Write which links hold packets and cannot send them.
     * @param [out] links [CountStalledLinks()] the links.
     */
    void ReadStalledLinks(uint32_t* links) const;

    /// @return Samples since the last ReadSamples.
    uint32_t CountSamples() const;

    /**
     * Write the samples, and forget them.
     * @param [out] timesPs [CountSamples()] the times.
     * @param [out] bytes [CountSamples()][nLinks] bytes sent so far.
     * @param [out] waitingBytes [CountSamples()][nLinks] bytes waiting.
     */
    void ReadSamples(int64_t* timesPs, uint64_t* bytes, uint64_t* waitingBytes);

    /// @return Whether a source gave up a packet; see UbFabric::GetError.
    bool HasFailed() const;

    /**
     * Write which packet a source gave up.
     * @param [out] failure [5] source and destination (nodes), network, time in picoseconds, and
     * whether there was a way.
     */
    void ReadFailure(int64_t* failure) const;

    /// @return Packets lost with dead switches or for want of a route.
    uint64_t GetPacketsLost() const;

  private:
    Ptr<UbFabric> m_fabric;                             //!< the fabric
    std::vector<std::pair<uint32_t, int64_t>> m_broken; //!< links that gave up, not yet read
};

} // namespace ns3

#endif // UB_RUN_H
