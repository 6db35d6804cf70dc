// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-run.h"

#include "ns3/global-value.h"
#include "ns3/simulator.h"
#include "ns3/string.h"

#include <algorithm>

namespace ns3
{

namespace
{

/**
 * @tparam T What the array holds.
 * @param [in] address The address of an array.
 * @return The array.
 */
template <class T>
T*
At(uint64_t address)
{
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

} // namespace

UbRun::UbRun()
{
    // no effect if a simulator is at work already: the fabric then runs step by step
    GlobalValue::Bind("SimulatorImplementationType", StringValue("ns3::UbSimulatorImpl"));
    m_fabric = CreateObject<UbFabric>();
}

UbRun::~UbRun()
{
    if (m_fabric)
    {
        m_fabric->Dispose();
        m_fabric = nullptr;
    }
    Simulator::Destroy();
}

void
UbRun::SetAttribute(const std::string& name, const std::string& value)
{
    m_fabric->SetAttribute(name, StringValue(value));
}

void
UbRun::Build(const UbFabricArrays& arrays)
{
    m_fabric->Build(arrays);
}

Ptr<UbFabric>
UbRun::GetFabric() const
{
    return m_fabric;
}

int64_t
UbRun::AddChunk(uint64_t flows,
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
                bool isLast)
{
    UbChunkArrays arrays;
    arrays.flows = At<UbFlowRecord>(flows);
    arrays.nFlows = nFlows;
    arrays.tasks = At<UbTaskRecord>(tasks);
    arrays.nTasks = nTasks;
    arrays.firstTask = firstTask;
    arrays.sendOrder = At<const uint32_t>(sendOrder);
    arrays.depStart = At<const uint64_t>(depStart);
    arrays.deps = At<const uint64_t>(deps);
    arrays.openOrder = At<const uint32_t>(openOrder);
    arrays.nOpen = nOpen;
    arrays.accounts = accounts == 0 ? nullptr : At<UbFlowAccount>(accounts);
    arrays.isLast = isLast;
    return m_fabric->AddChunk(arrays);
}

void
UbRun::Run(uint64_t packetHops)
{
    m_fabric->StopAfter(packetHops);
    Simulator::Run();
}

int64_t
UbRun::TakeCompleteChunk()
{
    return m_fabric->TakeCompleteChunk();
}

bool
UbRun::NeedsChunk() const
{
    return m_fabric->NeedsChunk();
}

bool
UbRun::IsFinished() const
{
    return !m_fabric->HasPaused();
}

std::string
UbRun::Leftover() const
{
    return m_fabric->Leftover();
}

int64_t
UbRun::GetNowPs() const
{
    return Simulator::Now().GetTimeStep();
}

uint64_t
UbRun::GetPacketHops() const
{
    return m_fabric->GetPacketHops();
}

uint64_t
UbRun::GetPacketsSent() const
{
    return m_fabric->GetPacketsSent();
}

uint64_t
UbRun::GetFabricEvents() const
{
    return m_fabric->GetFabricEvents();
}

uint64_t
UbRun::GetBytesSent() const
{
    return m_fabric->GetBytesSent();
}

uint64_t
UbRun::GetBytesDelivered() const
{
    return m_fabric->GetBytesDelivered();
}

void
UbRun::ReadLinkStats(uint64_t* packets,
                     uint64_t* bytes,
                     int64_t* busyPs,
                     uint64_t* maxQueueBytes,
                     int64_t* noCreditPs,
                     uint64_t* retries) const
{
    std::vector<UbLinkStats> stats;
    m_fabric->ReadLinkStats(stats);
    for (size_t i = 0; i < stats.size(); ++i)
    {
        packets[i] = stats[i].packets;
        bytes[i] = stats[i].bytes;
        busyPs[i] = stats[i].busyPs;
        maxQueueBytes[i] = stats[i].maxQueueBytes;
        noCreditPs[i] = stats[i].noCreditPs;
        retries[i] = stats[i].retries;
    }
}

void
UbRun::ScheduleLink(int64_t timePs, uint32_t link, uint64_t bytesPerS, double bitErrorRate)
{
    m_fabric->ScheduleLink(timePs, link, bytesPerS, bitErrorRate);
}

void
UbRun::ScheduleSwitch(int64_t timePs, uint32_t node, bool isDead)
{
    m_fabric->ScheduleSwitch(timePs, node, isDead);
}

void
UbRun::ScheduleRoutes(int64_t timePs, const UbFabricArrays& arrays)
{
    m_fabric->ScheduleRoutes(timePs, arrays);
}

void
UbRun::ReportBrokenLinks()
{
    m_fabric->ReportBrokenLinks();
}

uint32_t
UbRun::CountBroken()
{
    const auto broken = m_fabric->TakeBrokenLinks();
    m_broken.insert(m_broken.end(), broken.begin(), broken.end());
    return static_cast<uint32_t>(m_broken.size());
}

void
UbRun::ReadBroken(uint32_t* links, int64_t* timesPs)
{
    for (size_t i = 0; i < m_broken.size(); ++i)
    {
        links[i] = m_broken[i].first;
        timesPs[i] = m_broken[i].second;
    }
    m_broken.clear();
}

bool
UbRun::IsStalled() const
{
    return m_fabric->IsStalled();
}

uint32_t
UbRun::CountStalledLinks() const
{
    std::vector<uint32_t> links;
    m_fabric->ReadStalled(links);
    return static_cast<uint32_t>(links.size());
}

void
UbRun::ReadStalledLinks(uint32_t* links) const
{
    std::vector<uint32_t> stalled;
    m_fabric->ReadStalled(stalled);
    std::copy(stalled.begin(), stalled.end(), links);
}

uint32_t
UbRun::CountSamples() const
{
    return static_cast<uint32_t>(m_fabric->Samples().size());
}

void
UbRun::ReadSamples(int64_t* timesPs, uint64_t* bytes, uint64_t* waitingBytes)
{
    for (const auto& sample : m_fabric->Samples())
    {
        *timesPs++ = sample.timePs;
        bytes = std::copy(sample.bytes.begin(), sample.bytes.end(), bytes);
        waitingBytes =
            std::copy(sample.waitingBytes.begin(), sample.waitingBytes.end(), waitingBytes);
    }
    m_fabric->Samples().clear();
}

bool
UbRun::HasFailed() const
{
    return !m_fabric->GetError().empty();
}

void
UbRun::ReadFailure(int64_t* failure) const
{
    const UbEndpointError& error = m_fabric->GetFailure();
    failure[0] = error.src;
    failure[1] = error.dst;
    failure[2] = error.network;
    failure[3] = error.timePs;
    failure[4] = error.hasWay ? 1 : 0;
}

uint64_t
UbRun::GetPacketsLost() const
{
    return m_fabric->GetPacketsLost();
}

} // namespace ns3
